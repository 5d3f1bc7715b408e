"""Fixtures of every plugin's tests."""

from digits_corpus import digits  # noqa: F401 - a fixture of many tests
from restored import environment_of_module, environment_of_test, signals_of_test  # noqa: F401 - fixtures of every test

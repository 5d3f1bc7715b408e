"""What every plugin's test stands on."""

from restored import environment_of_module, environment_of_test, signals_of_test  # noqa: F401 - fixtures of every test

"""Recipes: schema, layers, checks, text."""

"""Joining and starting the processes of a command."""

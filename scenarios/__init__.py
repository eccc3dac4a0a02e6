"""Scenario files: data only. Every key is explained in README.md beside this file."""

"""Youtu: a language-model appliance for small machines."""

__version__ = "0.1.0"

"""Youtu: a language-model appliance for small machines."""

"""Recordings that become files, or are played again: what can be stopped and gone on with."""

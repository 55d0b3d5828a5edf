"""Checks before the first step, so that a config that cannot work ends early."""

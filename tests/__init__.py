"""Tests of the whole product; see tests/services.py for what they run on."""

"""Measures against labelled text: probes, absorption, spelling."""

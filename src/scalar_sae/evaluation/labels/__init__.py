"""Evaluation against labelled text: probes, absorption, spelling."""

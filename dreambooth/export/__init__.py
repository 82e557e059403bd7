"""Exports of a trained model: files for other tools."""

"""Figures of any sweep, and the looks of estimators."""

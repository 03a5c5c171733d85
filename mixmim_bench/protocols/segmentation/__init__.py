"""Protocols for segmentation: a class for each pixel."""

SLIDE, WHOLE = EVALUATIONS = ("slide", "whole")  # how images are evaluated

"""Tests of small files: readers and the writer."""

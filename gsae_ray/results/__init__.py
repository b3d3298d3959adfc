"""What came out of a sweep."""

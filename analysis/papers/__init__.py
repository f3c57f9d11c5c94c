"""Published numbers, papers' layouts and papers' own figures."""

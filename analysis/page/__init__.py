"""The interactive report: one offline HTML file."""

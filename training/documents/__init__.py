"""What the repository generates from the estimators: tables of its pages, noise for figures without torch."""

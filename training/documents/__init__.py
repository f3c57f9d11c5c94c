"""What is generated from the code: tables of pages, noise for figures without torch, the help of the command line."""

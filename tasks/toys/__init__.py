"""Problems without data, whose optimum is known."""

"""The comparisons of the training benchmark, one file for each subject."""

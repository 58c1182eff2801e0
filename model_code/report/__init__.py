"""Finished runs -> one report: published figures beside ours, verdicts on the open questions, figures, every run id."""

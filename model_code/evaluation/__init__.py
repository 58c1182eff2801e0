"""What a trained network is worth: metrics and figures."""

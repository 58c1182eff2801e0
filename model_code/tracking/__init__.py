"""Results -> MLflow and TensorBoard, nothing else."""

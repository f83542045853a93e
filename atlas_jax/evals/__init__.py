"""What a trained model is measured by, and the plain models it is measured against."""

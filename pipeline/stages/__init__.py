"""The stages of dvc.yaml, one thin file each."""

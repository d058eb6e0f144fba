"""Where calibration inputs come from: files, a loader script, or the model itself."""

"""Quality, calibration, agreement and cost; nothing here trains or records."""

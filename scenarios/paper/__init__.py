"""The paper's claims beside predictions and measurements."""

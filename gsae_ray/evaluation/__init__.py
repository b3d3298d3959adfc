"""How good an SAE is: spliced into the model, on fixed held-out contexts. No Ray here."""

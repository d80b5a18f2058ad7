"""What the models are worth: numbers with intervals, beside baselines and ceilings."""

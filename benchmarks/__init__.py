"""What we claim about speed, runnable by anyone: ratios beside peers, taken in one run."""

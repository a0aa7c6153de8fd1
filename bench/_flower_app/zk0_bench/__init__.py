"""The app that Flower runs in bench/round.py."""

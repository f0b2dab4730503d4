"""The alpha-beta condition, aiming, and the Polyak-Lojasiewicz condition."""

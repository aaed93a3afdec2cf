"""How good a segmentation is, as the F-SEG paper measures it (§3.5): probing, matching, tables, plots."""

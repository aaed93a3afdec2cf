"""The methods of the papers, each in its own letters: F-SEG, SIC, CAM and Grad-CAM."""

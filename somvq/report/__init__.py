"""Studies as one HTML file that needs nothing else: no network, no server, no somvq; to be mailed and kept."""

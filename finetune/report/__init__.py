"""One self-contained HTML page about one run or several, from run folders alone, without torch."""

"""One module per engine that makes logical machines, behind one narrow contract (base)."""

"""Figures from arrays: each function returns a matplotlib `Figure`; `style.save` writes the PNG.

Equal arrays give equal bytes: the Agg canvas, matplotlib's own fonts and defaults whatever the
user's matplotlibrc says, and no date or software name inside. Colours are Okabe and Ito's, which
people with colour blindness can tell apart, and nothing is said by colour alone. The figures of
`interactive` are plotly's.
"""

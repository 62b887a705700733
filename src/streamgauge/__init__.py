"""streamgauge: is what a tool says about a residual stream true of the model's behaviour?"""

__version__ = "0.1.0"

"""The picture graph in int8, and the corrections that keep its pictures close to those of fp32."""

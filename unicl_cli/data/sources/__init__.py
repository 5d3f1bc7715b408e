"""The data sources that come with unicl, one file each."""

package image

// Nothing32 is what is run to find out whether it can be.
var Nothing32 = nothing32

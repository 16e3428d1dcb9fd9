package openfaas

// Environment is what a function at a provider gets.
var Environment = environment

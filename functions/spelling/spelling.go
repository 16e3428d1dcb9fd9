// Package spelling finds what somebody meant who mistyped a word: an annotation,
// a key of a stack file, the name of a function. It only measures; what is near
// enough to be suggested, and how to say it, is for the one who knows the words.
package spelling

// longest is how many bytes of a word are looked at: no word that we know is
// longer, and to compare two takes time as the product of their lengths.
const longest = 64

// Distance returns how many letters must be added, removed or replaced to make
// one word of the other (Levenshtein), or far+1 if they are more than far. Of
// words of more than 64 bytes only the beginning is compared.
func Distance(a, b string, far int) int {
	a, b = a[:min(len(a), longest)], b[:min(len(b), longest)]
	if len(a)-len(b) > far || len(b)-len(a) > far {
		return far + 1
	}
	var row [longest + 1]int
	for j := range len(b) + 1 {
		row[j] = j
	}
	for i := range len(a) {
		diagonal, least := row[0], i+1
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
			least = min(least, cost)
		}
		if least > far {
			return far + 1
		}
	}
	return min(row[len(b)], far+1)
}

// Nearest returns the known word with the fewest letters different, the first of
// several, or "" if none is within far.
func Nearest(word string, known []string, far int) string {
	best := ""
	for _, k := range known {
		if d := Distance(word, k, far); d <= far {
			if best, far = k, d-1; far < 0 {
				break
			}
		}
	}
	return best
}

package verify

import (
	"bytes"
	"fmt"
	"strconv"
)

// keyOf is the key of a record: numbers go round the keys.
func keyOf(number uint64, keys int) string { return fmt.Sprintf("key-%d", number%uint64(keys)) }

// valueOf is the value of a record: the run that sent it, and its number there.
func valueOf(run string, number uint64) []byte {
	return strconv.AppendUint(append([]byte(run), ' '), number, 10)
}

// numberIn reads a value. It reports false for one that another run, or somebody
// else, has sent.
func numberIn(value []byte, run string) (number uint64, ours bool) {
	of, text, found := bytes.Cut(value, []byte{' '})
	if !found || string(of) != run {
		return 0, false
	}
	number, err := strconv.ParseUint(string(text), 10, 64)
	return number, err == nil
}

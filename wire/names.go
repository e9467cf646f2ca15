package wire

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// ValidateName checks the name of a destination, group or producer: 1 to
// MaxNameBytes bytes of UTF-8, levels separated by '/', no level empty or "." or
// "..", no control characters. The error is an *Error with CodeInvalidName that
// says what is wrong. A valid name is still no path: never use it as one.
func ValidateName(name string) error {
	switch {
	case name == "":
		return Errorf(CodeInvalidName, "a name must not be empty")
	case len(name) > MaxNameBytes:
		return Errorf(CodeInvalidName, "name %.32q... has %d bytes, the limit is %d", name, len(name), MaxNameBytes)
	case !utf8.ValidString(name):
		return Errorf(CodeInvalidName, "name %q is not UTF-8", name)
	}
	for _, c := range name {
		if unicode.IsControl(c) {
			return Errorf(CodeInvalidName, "name %q contains the control character %U", name, c)
		}
	}
	for level := range strings.SplitSeq(name, "/") {
		switch level {
		case "":
			return Errorf(CodeInvalidName, "name %q has an empty level between slashes", name)
		case ".", "..":
			return Errorf(CodeInvalidName, "name %q has the level %q", name, level)
		}
	}
	return nil
}

package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/lockstepmq/lockstep/client"
)

// A format says how consume writes a record. It is compiled once:
//
//	%p partition   %o offset            %e epoch
//	%k key         %v value             %h headers as name=value, comma between
//	%t timestamp, RFC 3339 in UTC with milliseconds   %T the same as milliseconds since 1970
//	%% a percent sign
//	\n newline  \t tab  \r carriage return  \0 zero byte  \\ backslash  \xNN any byte
type format []formatPart

type formatPart struct {
	verb    byte   // 0 for a literal
	literal []byte // unless verb is set
}

const formatVerbs = "%p %o %e %k %v %t %T %h %%"

// parseFormat compiles s. The error names the position of the first mistake.
func parseFormat(s string) (format, error) {
	f := format{}
	var literal []byte
	flush := func() {
		if len(literal) > 0 {
			f = append(f, formatPart{literal: literal})
			literal = nil
		}
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '%' && c != '\\' {
			literal = append(literal, c)
			continue
		}
		if i+1 == len(s) {
			return nil, fmt.Errorf("format %q ends in a lone %q; write it twice to mean the character", s, c)
		}
		i++
		next := s[i]
		if c == '%' {
			switch next {
			case '%':
				literal = append(literal, '%')
			case 'p', 'o', 'e', 'k', 'v', 't', 'T', 'h':
				flush()
				f = append(f, formatPart{verb: next})
			default:
				return nil, fmt.Errorf("format %q: unknown verb %%%c at character %d; known are %s", s, next, i, formatVerbs)
			}
			continue
		}
		switch next {
		case 'n':
			literal = append(literal, '\n')
		case 't':
			literal = append(literal, '\t')
		case 'r':
			literal = append(literal, '\r')
		case '0':
			literal = append(literal, 0)
		case '\\':
			literal = append(literal, '\\')
		case 'x':
			if i+2 >= len(s) {
				return nil, fmt.Errorf(`format %q: \x at character %d needs two hexadecimal digits`, s, i)
			}
			b, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return nil, fmt.Errorf(`format %q: \x at character %d needs two hexadecimal digits`, s, i)
			}
			literal = append(literal, byte(b))
			i += 2
		default:
			return nil, fmt.Errorf(`format %q: unknown escape \%c at character %d; known are \n \t \r \0 \\ \xNN`, s, next, i)
		}
	}
	flush()
	return f, nil
}

// append writes one record to dst.
func (f format) append(dst []byte, r *client.Record) []byte {
	for i := range f {
		part := &f[i]
		switch part.verb {
		case 0:
			dst = append(dst, part.literal...)
		case 'v':
			dst = append(dst, r.Value...)
		case 'k':
			dst = append(dst, r.Key...)
		case 'p':
			dst = strconv.AppendUint(dst, uint64(r.Partition), 10)
		case 'o':
			dst = strconv.AppendUint(dst, r.Offset, 10)
		case 'e':
			dst = strconv.AppendUint(dst, uint64(r.Epoch), 10)
		case 't':
			dst = appendTimestamp(dst, r.Timestamp)
		case 'T':
			dst = strconv.AppendInt(dst, r.Timestamp.UnixMilli(), 10)
		case 'h':
			for j, h := range r.Headers {
				if j > 0 {
					dst = append(dst, ',')
				}
				dst = append(dst, h.Key...)
				dst = append(dst, '=')
				dst = append(dst, h.Value...)
			}
		}
	}
	return dst
}

func appendTimestamp(dst []byte, t time.Time) []byte {
	return t.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000Z07:00")
}

// jsonRecord is one line of `consume -o json` and `browse -o json`.
type jsonRecord struct {
	Partition uint32 `json:"partition"`
	Offset    uint64 `json:"offset"`
	Epoch     uint32 `json:"epoch"`
	Timestamp string `json:"timestamp"`
	jsonContent
	*standingJSON
}

// jsonContent is what a record holds. Bytes that are not UTF-8 are written in base64 and
// the matching …_encoding field says "base64".
type jsonContent struct {
	Key           *string      `json:"key"`
	KeyEncoding   string       `json:"key_encoding,omitempty"`
	Value         string       `json:"value"`
	ValueEncoding string       `json:"value_encoding,omitempty"`
	Headers       []jsonHeader `json:"headers,omitempty"`
}

type jsonHeader struct {
	Name          string `json:"name"`
	Value         string `json:"value"`
	ValueEncoding string `json:"value_encoding,omitempty"`
}

// appendJSON writes one record as a JSON object and a newline to dst, with how it stands in
// a group, if that is given.
func appendJSON(dst *bytes.Buffer, r *client.Record, standing *standingJSON) error {
	out := jsonRecord{
		standingJSON: standing,

		Partition: r.Partition,
		Offset:    r.Offset,
		Epoch:     r.Epoch,
		Timestamp: string(appendTimestamp(nil, r.Timestamp)),

		jsonContent: contentOf(r),
	}
	e := json.NewEncoder(dst)
	e.SetEscapeHTML(false)
	return e.Encode(&out)
}

func contentOf(r *client.Record) jsonContent {
	out := jsonContent{Headers: jsonHeaders(r.Headers)}
	if r.Key != nil {
		key, encoding := textOrBase64(r.Key)
		out.Key, out.KeyEncoding = &key, encoding
	}
	out.Value, out.ValueEncoding = textOrBase64(r.Value)
	return out
}

func jsonHeaders(list []client.Header) []jsonHeader {
	var out []jsonHeader
	for _, h := range list {
		value, encoding := textOrBase64(h.Value)
		out = append(out, jsonHeader{Name: h.Key, Value: value, ValueEncoding: encoding})
	}
	return out
}

func textOrBase64(b []byte) (text, encoding string) {
	if utf8.Valid(b) {
		return string(b), ""
	}
	return base64.StdEncoding.EncodeToString(b), "base64"
}

package cli

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
)

func sampleRecord() *client.Record {
	return &client.Record{
		Key: []byte("alice"), Value: []byte("3 apples"),
		Headers:   []client.Header{{Key: "type", Value: []byte("order")}, {Key: "n", Value: nil}},
		Timestamp: time.Date(2026, 3, 1, 13, 4, 5, 67e6, time.FixedZone("", 3600)),
		Partition: 2, Offset: 41, Epoch: 7,
	}
}

func TestFormats(t *testing.T) {
	for _, c := range []struct{ format, want, err string }{
		{``, "", ""},
		{`%v`, "3 apples", ""},
		{`%p %o %k %v\n`, "2 41 alice 3 apples\n", ""},
		{`%e|%t|%T`, "7|2026-03-01T12:04:05.067Z|1772366645067", ""},
		{`[%h]`, "[type=order,n=]", ""},
		{`100%%`, "100%", ""},
		{`\t\r\0\\\x41\xff`, "\t\r\x00\\A\xff", ""},
		{`%%v\\n`, `%v\n`, ""},
		{`ü%k`, "üalice", ""},
		{`%`, "", `format "%" ends in a lone '%'; write it twice to mean the character`},
		{`a\`, "", `format "a\\" ends in a lone '\\'; write it twice to mean the character`},
		{`%v %q`, "", `format "%v %q": unknown verb %q at character 4; known are %p %o %e %k %v %t %T %h %%`},
		{`\q`, "", `format "\\q": unknown escape \q at character 1; known are \n \t \r \0 \\ \xNN`},
		{`\x4`, "", `format "\\x4": \x at character 1 needs two hexadecimal digits`},
		{`\xgg`, "", `format "\\xgg": \x at character 1 needs two hexadecimal digits`},
	} {
		t.Run(c.format, func(t *testing.T) {
			f, err := parseFormat(c.format)
			if c.err != "" {
				require.EqualError(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.NotNil(t, f)
			require.Equal(t, c.want, string(f.append(nil, sampleRecord())))
		})
	}
}

func TestJSONLines(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, appendJSON(&out, sampleRecord(), nil))
	binary := sampleRecord()
	binary.Key, binary.Headers, binary.Value = nil, nil, []byte{0xff, 0x00}
	require.NoError(t, appendJSON(&out, binary, nil))
	binary.Key, binary.Value = []byte{0xfe}, []byte("<a&b>\n")
	require.NoError(t, appendJSON(&out, binary, nil))
	const place = `"partition":2,"offset":41,"epoch":7,"timestamp":"2026-03-01T12:04:05.067Z"`
	require.Equal(t, `{`+place+`,"key":"alice","value":"3 apples","headers":[{"name":"type","value":"order"},{"name":"n","value":""}]}
{`+place+`,"key":null,"value":"/wA=","value_encoding":"base64"}
{`+place+`,"key":"/g==","key_encoding":"base64","value":"<a&b>\n"}
`, out.String())
}

// The output of consume is the input of produce, byte for byte, whether or not
// its last line ends in a newline.
func TestLinesComeBackAsTheyWere(t *testing.T) {
	print := func(p *printer, values ...string) string {
		var out []byte
		for _, v := range values {
			r := &client.Record{}
			if rest, marked := bytes.CutSuffix([]byte(v), []byte("$")); marked {
				r.Value = rest
				r.Headers = []client.Header{{Key: "a", Value: nil}, {Key: noNewlineHeader, Value: []byte(noNewlineValue)}}
			} else {
				r.Value = []byte(v)
			}
			out = p.append(out, r, nil)
		}
		return string(out)
	}
	require.Equal(t, "a\n\nb\n", print(newPrinter(nil, false), "a", "", "b"))
	require.Equal(t, "a\nb", print(newPrinter(nil, false), "a", "b$"))
	require.Equal(t, "a\nb\nc\nd", print(newPrinter(nil, false), "a", "b$", "c", "d$"), "two inputs without a last newline stay apart")
	require.Equal(t, "ab", print(newPrinter(format{{verb: 'v'}}, false), "a", "b$"), "a format decides alone")
}

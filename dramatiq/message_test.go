package dramatiq_test

import (
	"encoding/json"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/dramatiq"
)

// vector is a message as Dramatiq or another client put it into RabbitMQ.
type vector struct {
	name       string
	Queue      string         `json:"queue"`
	Properties map[string]int `json:"properties"`
	UTF8       string         `json:"body_utf8"`
	Latin1     string         `json:"body_latin1"`
}

func (v vector) body() []byte {
	if v.Latin1 == "" {
		return []byte(v.UTF8)
	}
	var b []byte
	for _, r := range v.Latin1 {
		b = append(b, byte(r))
	}
	return b
}

func vectors(t testing.TB, dir string) []vector {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", dir, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", dir, len(files), err)
	}
	var all []vector
	for _, f := range files {
		v := vector{name: strings.TrimSuffix(filepath.Base(f), ".json")}
		doc, err := os.ReadFile(f)
		check(t, err, json.Unmarshal(doc, &v))
		all = append(all, v)
	}
	return all
}

// undecodable are the captured bodies that Dramatiq itself refuses.
var undecodable = map[string]string{
	"w06": "no value of JSON begins like this",
	"w08": `unknown key "trace_id"`,
	"w20": "a key in double quotes is missing",
}

func TestEveryCapturedMessageIsDecodedAndEncodedToTheSameValues(t *testing.T) {
	for _, v := range vectors(t, "vectors") {
		m, err := dramatiq.Decode(v.body())
		if want, bad := undecodable[v.name]; bad {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want an error with %q", v.name, err, want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", v.name, err)
			continue
		}
		if len(m.Notes) > 0 {
			t.Errorf("%s: notes %q about a message of Dramatiq's own", v.name, m.Notes)
		}
		body, err := m.Encode()
		if err != nil {
			t.Errorf("%s: %v", v.name, err)
			continue
		}
		// Python puts spaces where a body was made by hand: without them it is the same, byte for byte.
		if got, want := string(body), strings.NewReplacer(`": `, `":`, `, "`, `,"`).Replace(v.UTF8); got != want {
			t.Errorf("%s:\n got %s\nwant %s", v.name, got, want)
		}
	}
}

func TestWhatPythonWritesIsCarriedOnByteForByte(t *testing.T) {
	const (
		args = `[9007199254740993, 1e+16,3.0,-0.0, NaN ,Infinity,-Infinity,"\ud800","\ud83d\ude00", 10000000000000000000000000000000000000000]`
		opts = `{"\u006dine" : {"a":NaN},"broker_priority":3}`
	)
	m, err := dramatiq.Decode([]byte(` {"kwargs":{"q\u0000":"\u2028<>&/"},"args":` + args + `,"options":` + opts + `,"queue_name":"q","actor_name":"\u00e9","message_id":"x","message_timestamp":1700000000000}`))
	check(t, err)
	body, err := m.Encode()
	check(t, err)
	want := `{"queue_name":"q","actor_name":"\u00e9","args":` + args + `,"kwargs":{"q\u0000":"\u2028<>&/"},"options":` + opts +
		`,"message_id":"x","message_timestamp":1700000000000}`
	if string(body) != want {
		t.Errorf("got %s\nwant %s", body, want)
	}
}

// TestBigIntegersKeepEveryDigit reads them as numbers, to be sure of more than bytes.
func TestBigIntegersKeepEveryDigit(t *testing.T) {
	for _, v := range vectors(t, "vectors") {
		if v.name != "s06" {
			continue
		}
		m, err := dramatiq.Decode(v.body())
		check(t, err)
		doc, err := dramatiq.Bind("noop", reflect.TypeFor[[]json.Number](), []byte(`[`+string(m.Args)+`]`), m.Kwargs)
		check(t, err)
		var got []json.Number
		check(t, json.Unmarshal(doc, &got))
		want := new(big.Int).Exp(big.NewInt(10), big.NewInt(40), nil).String()
		if !slices.Contains(got, json.Number(want)) || !slices.Contains(got, "9007199254740993") {
			t.Errorf("got %v", got)
		}
	}
}

func TestABodyThatCannotBeAMessageIsRefusedWithTheReason(t *testing.T) {
	around := func(field, value string) string {
		fields := []string{`"queue_name":"q"`, `"actor_name":"a"`, `"args":[]`, `"kwargs":{}`, `"options":{}`}
		for i, f := range fields {
			if strings.HasPrefix(f, `"`+field+`"`) {
				fields[i] = value
			}
		}
		return "{" + strings.Join(slices.DeleteFunc(fields, func(f string) bool { return f == "" }), ",") + "}"
	}
	many := strings.Repeat(`"k":1,`, 1024)
	for _, c := range []struct{ body, want string }{
		{``, "decode message: it is empty"},
		{`null`, "it is null, not an object"},
		{`[]`, "it is a list, not an object"},
		{`{}`, "queue_name is missing"},
		{`{`, "a key in double quotes is missing"},
		{"\ufeff{}", "it begins with a byte order mark"},
		{"\"\xe9\"", "it is not valid UTF-8"},
		{around("args", ""), "args is missing"},
		{around("args", `"args":null`), "args is null"},
		{around("args", `"args":"ab"`), "args is a string"},
		{around("args", `"ARGS":[]`), `unknown key "ARGS"`},
		{around("args", `"args":[],"args":[]`), "args is there twice"},
		{around("args", `"args":[],"\u0061rgs":[]`), "args is there twice"},
		{around("kwargs", `"kwargs":[]`), "kwargs is a list"},
		{around("options", `"options":null`), "options is null"},
		{around("options", `"options":{"eta":1,"eta":2}`), "option eta is there twice"},
		{around("actor_name", `"actor_name":["x"]`), "actor_name is a list"},
		{around("args", `"args":[01]`), "not a number"},
		{around("args", `"args":[1 2]`), "a comma or ']' is missing"},
		{around("args", `"args":[1.]`), "not a number"},
		{around("args", `"args":[-]`), "not a number"},
		{around("args", `"args":[nan]`), "no value of JSON begins like this"},
		{around("args", `"args":[-NaN]`), "not a number"},
		{around("args", `"args":["\x"]`), `there is no escape \x`},
		{around("args", `"args":["\u12g4"]`), "four hexadecimal digits"},
		{around("args", "\"args\":[\"\n\"]"), "a control character in a string"},
		{around("args", `"args":`+strings.Repeat("[", 63)+strings.Repeat("]", 63)), ""},
		{around("args", `"args":`+strings.Repeat("[", 64)+strings.Repeat("]", 64)), "nested more than 64 deep"},
		{around("kwargs", `"kwargs":{`+many[:len(many)-1]+`}`), ""},
		{around("kwargs", `"kwargs":{`+many+`"k":1}`), "more than 1024 keys in an object"},
		{around("args", `"args":["`+strings.Repeat("x", dramatiq.MaxBody)+`"]`), "the limit is 1048576"},
		{around("args", `"args":[]`) + "{}", "something follows the document"},
	} {
		_, err := dramatiq.Decode([]byte(c.body))
		if c.want == "" && err == nil {
			continue
		}
		if err == nil || c.want == "" || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.80s: %v, want %q", c.body, err, c.want)
		}
	}
}

func TestAMessageIsATaskOfItsOwnID(t *testing.T) {
	id := func(text string) opscore.ID {
		t.Helper()
		m := dramatiq.Message{ID: text}
		id, err := m.TaskID()
		check(t, err)
		return id
	}
	const uuid4 = "79b00dd9-f7f3-461e-88b9-56a74bf55acc"
	if got := id(uuid4).String(); got != uuid4 {
		t.Errorf("a UUID becomes %s", got)
	}
	if got := id("order-42"); got.Version() != 5 || got != id("order-42") || got == id("order-43") {
		t.Errorf("other text becomes %s", got)
	}
	for _, text := range []string{"00000000-0000-0000-0000-000000000000", "79b00dd9f7f3461e88b956a74bf55acc", "urn:uuid:" + uuid4} {
		if got := id(text); got.Version() != 5 {
			t.Errorf("%s becomes %s", text, got)
		}
	}
	if a, b := id(""), id(""); a == b || a.Version() != 7 {
		t.Errorf("no id becomes %s, then %s", a, b)
	}
}

// FuzzDecode holds that no body makes the decoder panic or allocate much, and that what it accepts is carried on.
func FuzzDecode(f *testing.F) {
	for _, dir := range []string{"vectors", "poison"} {
		for _, v := range vectors(f, dir) {
			f.Add(v.body())
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m, err := dramatiq.Decode(body)
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > uint64(4*len(body)+64<<10) {
			t.Errorf("%d bytes were allocated for %d", used, len(body))
		}
		if err != nil {
			return
		}
		if _, err := dramatiq.Bind("a", reflect.TypeFor[struct{ A, B int }](), m.Args, m.Kwargs); err == nil && len(m.Args) == 0 {
			t.Error("bound nothing")
		}
		if m.Timestamp.IsZero() || m.ID == "" || m.Actor == "" || dramatiq.ValidQueue(m.Queue) != nil {
			return
		}
		again, err := m.Encode()
		if err != nil {
			if len(body) < dramatiq.MaxBody/8 { // names can grow when they are written in ASCII
				t.Errorf("what was decoded is not encoded: %v", err)
			}
			return
		}
		back, err := dramatiq.Decode(again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		m.Notes, back.Notes = nil, nil
		if !reflect.DeepEqual(m, back) {
			t.Errorf("%+v became %+v", m, back)
		}
	})
}

func TestAQueueIsRefusedThatCannotBeDramatiqs(t *testing.T) {
	for name, valid := range map[string]bool{
		"default": true, "opscore_mail": true, "_x.y-z": true, "default.DQ": false, "default.XQ": false, "opscore.default": false, "opscore-dead": false,
		"amq.direct": false, "1st": false, "": false, "a b": false,
	} {
		if err := dramatiq.ValidQueue(name); (err == nil) != valid {
			t.Errorf("%q: %v", name, err)
		}
	}
}

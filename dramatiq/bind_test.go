package dramatiq_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/opscore/opscore/dramatiq"
)

func check(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

type pair struct {
	A     int    `json:"a"`
	B     int    `json:"b"`
	Note  string `json:"note,omitempty"`
	Extra *int
	inner int
	Never int `json:"-"`
}

type nested struct {
	pair

	Last float64 `json:"last,omitzero"`
}

func TestArgumentsBindLikeThoseOfAPythonFunction(t *testing.T) {
	_ = pair{}.inner
	for _, c := range []struct {
		in           any
		args, kwargs string
		want, err    string
	}{
		{pair{}, `[1,2]`, `{}`, `{"a":1,"b":2}`, ""},
		{&pair{}, `[1]`, `{"b":2}`, `{"a":1,"b":2}`, ""},
		{pair{}, `[]`, `{"b":2,"a":1,"note":"x","Extra":null}`, `{"a":1,"b":2,"note":"x","Extra":null}`, ""},
		{pair{}, `[1,2,"x",7]`, `{}`, `{"a":1,"b":2,"note":"x","Extra":7}`, ""},
		{nested{}, `[1,2,"x",7,0.5]`, `{}`, `{"a":1,"b":2,"note":"x","Extra":7,"last":0.5}`, ""},
		{pair{}, `[1,2,3,4,5]`, `{}`, "", "takes 4 positional arguments but 5 were given"},
		{struct{}{}, `[1]`, `{}`, "", "takes 0 positional arguments but 1 was given"},
		{struct{ X int }{}, `[1, [2,3]]`, `{}`, "", "takes 1 positional argument but 2 were given"},
		{struct{}{}, `[]`, `{}`, `{}`, ""},
		{pair{}, `[1]`, `{}`, "", "missing 1 required positional argument: 'b'"},
		{pair{}, `[]`, `{}`, "", "missing 2 required positional arguments: 'a' and 'b'"},
		{struct{ A, B, C int }{}, `[]`, `{}`, "", "missing 3 required positional arguments: 'A', 'B', and 'C'"},
		{pair{}, `[1]`, `{"a":1,"b":2}`, "", "got multiple values for argument 'a'"},
		{pair{}, `[]`, `{"a":1,"b":2,"a":3}`, "", "got multiple values for keyword argument 'a'"},
		{pair{}, `[1,2]`, `{"c":3}`, "", "got an unexpected keyword argument 'c'"},
		{pair{}, `[1]`, `{"B":3}`, "", "got an unexpected keyword argument 'B'"},
		{map[string]int{}, `[]`, `{"x":1}`, `{"x":1}`, ""},
		{map[string]int{}, `[1]`, `{}`, "", "takes 0 positional arguments but 1 was given"},
		{0, `[7]`, `{}`, `7`, ""},
		{[]int{}, `[[1,2]]`, `{}`, `[1,2]`, ""},
		{time.Time{}, `["2030-01-01T00:00:00Z"]`, `{}`, `"2030-01-01T00:00:00Z"`, ""},
		{0, `[]`, `{}`, "", "missing 1 required positional argument"},
		{0, `[]`, `{"x":1}`, "", "got an unexpected keyword argument 'x'"},
		{json.RawMessage{}, `[]`, `{"x": NaN}`, `{"x": NaN}`, ""},
		{json.RawMessage{}, `[1 , 2]`, `{"x":"\ud800"}`, `{"args":[1 , 2],"kwargs":{"x":"\ud800"}}`, ""},
		{pair{}, `[1,[2,{"x":-Infinity}]]`, `{}`, "", "argument 'b' holds -Infinity, which JSON does not have: dramatiq_test.pair cannot take it, only a json.RawMessage can"},
		{pair{}, `[1,2]`, `{"note":"NaN \" Infinity"}`, `{"a":1,"b":2,"note":"NaN \" Infinity"}`, ""},
		{map[string]any{}, `[]`, `{"x":NaN}`, "", "argument 'x' holds NaN, which JSON does not have: map[string]interface {} cannot take it, only a json.RawMessage can"},
	} {
		got, err := dramatiq.Bind("add", reflect.TypeOf(c.in), []byte(c.args), []byte(c.kwargs))
		want := c.err
		if want != "" {
			want = "TypeError: add() " + want
		}
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != want || string(got) != c.want {
			t.Errorf("%T %s %s: %s, error %q, want %s, error %q", c.in, c.args, c.kwargs, got, text, c.want, want)
		}
	}
}

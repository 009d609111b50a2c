package dramatiq

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// Bind makes the input of a handler that takes in from positional and keyword arguments, as Python calls a function with
// them. The fields of a struct are its parameters: keyword arguments go by their JSON names, positional ones by their order. A field
// is optional if it is a pointer or its tag says omitempty or omitzero. A map takes keyword arguments alone. A [json.RawMessage] gets the
// keyword arguments or, if there are positional ones, {"args": […], "kwargs": {…}}, byte for byte, even where they hold
// NaN or Infinity, which is an error for all others, as JSON has no such numbers. Everything else takes one positional argument.
//
// The errors are those of Python: they name the actor and the argument.
func Bind(actor string, in reflect.Type, args, kwargs []byte) ([]byte, error) {
	doc, err := bind(in, args, kwargs)
	if err != nil {
		return nil, fmt.Errorf("TypeError: %s() %w", actor, err)
	}
	return doc, nil
}

func bind(in reflect.Type, args, kwargs []byte) ([]byte, error) {
	if twice := repeated(kwargs); twice != "" {
		return nil, fmt.Errorf("got multiple values for keyword argument '%s'", twice)
	}
	raw := in == reflect.TypeFor[json.RawMessage]()
	if !raw {
		if err := finite(in, args, kwargs); err != nil {
			return nil, err
		}
	}
	for in.Kind() == reflect.Pointer && !reads(in) {
		in = in.Elem()
	}
	positional := each(args, nil)
	switch {
	case raw || in.Kind() == reflect.Interface:
		if positional == 0 {
			return kwargs, nil
		}
		return bytes.Join([][]byte{[]byte(`{"args":`), args, []byte(`,"kwargs":`), kwargs, []byte(`}`)}, nil), nil
	case reads(in) || in.Kind() != reflect.Struct && in.Kind() != reflect.Map:
		return only(args, kwargs, positional)
	case in.Kind() == reflect.Map:
		if positional > 0 {
			return nil, tooMany(0, positional)
		}
		return kwargs, nil
	}
	return fill(parameters(in), args, kwargs, positional)
}

// reads reports whether a type reads JSON in its own way, so that its fields say nothing.
func reads(t reflect.Type) bool {
	return t.Implements(reflect.TypeFor[json.Unmarshaler]()) || reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]())
}

// only returns the one argument that there must be.
func only(args, kwargs []byte, positional int) (doc []byte, err error) {
	each(kwargs, func(name, _ []byte) bool {
		key := unquote(name)
		err = fmt.Errorf("got an unexpected keyword argument '%s'", clip(key))
		return false
	})
	switch {
	case err != nil:
		return nil, err
	case positional == 0:
		return nil, fmt.Errorf("missing 1 required positional argument")
	case positional > 1:
		return nil, tooMany(1, positional)
	}
	each(args, func(_, value []byte) bool {
		doc = value
		return false
	})
	return doc, nil
}

func tooMany(takes, given int) error {
	s, were := "s", "were"
	if takes == 1 {
		s = ""
	}
	if given == 1 {
		were = "was"
	}
	return fmt.Errorf("takes %d positional argument%s but %d %s given", takes, s, given, were)
}

// parameter is a field that an argument can fill.
type parameter struct {
	name     string
	optional bool
}

// parameters are the fields of a struct as encoding/json sees them, in their order.
func parameters(t reflect.Type) (all []parameter) {
	for f := range t.Fields() {
		name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
		inner := f.Type
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		switch {
		case f.Tag.Get("json") == "-":
		case f.Anonymous && name == "" && inner.Kind() == reflect.Struct && !reads(inner):
			all = append(all, parameters(inner)...)
		case f.IsExported():
			if name == "" {
				name = f.Name
			}
			optional := f.Type.Kind() == reflect.Pointer || strings.Contains(","+rest+",", ",omitempty,") || strings.Contains(","+rest+",", ",omitzero,")
			all = append(all, parameter{name, optional})
		}
	}
	return all
}

// fill gives each parameter its argument.
func fill(takes []parameter, args, kwargs []byte, positional int) (doc []byte, err error) {
	if positional > len(takes) {
		return nil, tooMany(len(takes), positional)
	}
	given := make(map[string][]byte, len(takes))
	i := 0
	each(args, func(_, value []byte) bool {
		given[takes[i].name] = value
		i++
		return true
	})
	known := make(map[string]bool, len(takes))
	for _, p := range takes {
		known[p.name] = true
	}
	each(kwargs, func(name, value []byte) bool {
		switch key := unquote(name); {
		case !known[key]:
			err = fmt.Errorf("got an unexpected keyword argument '%s'", clip(key))
		case given[key] != nil:
			err = fmt.Errorf("got multiple values for argument '%s'", key)
		default:
			given[key] = value
		}
		return err == nil
	})
	if err == nil {
		err = missing(takes, given)
	}
	if err != nil {
		return nil, err
	}
	doc = append(doc, '{')
	for _, p := range takes {
		if value := given[p.name]; value != nil {
			if len(doc) > 1 {
				doc = append(doc, ',')
			}
			doc = append(append(quote(doc, p.name), ':'), value...)
		}
	}
	return append(doc, '}'), nil
}

// missing names the parameters that have to be given and are not.
func missing(takes []parameter, given map[string][]byte) error {
	var names []string
	for _, p := range takes {
		if given[p.name] == nil && !p.optional {
			names = append(names, "'"+p.name+"'")
		}
	}
	switch n := len(names); n {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("missing 1 required positional argument: %s", names[0])
	case 2:
		return fmt.Errorf("missing 2 required positional arguments: %s and %s", names[0], names[1])
	default:
		return fmt.Errorf("missing %d required positional arguments: %s, and %s", n, strings.Join(names[:n-1], ", "), names[n-1])
	}
}

// finite refuses what JSON cannot say, naming the argument.
func finite(in reflect.Type, args, kwargs []byte) (err error) {
	refuse := func(name string, value []byte) bool {
		if what := nonFinite(value); what != "" {
			err = fmt.Errorf("argument %s holds %s, which JSON does not have: %s cannot take it, only a json.RawMessage can", name, what, in)
		}
		return err == nil
	}
	for in.Kind() == reflect.Pointer {
		in = in.Elem()
	}
	var takes []parameter
	if in.Kind() == reflect.Struct && !reads(in) {
		takes = parameters(in)
	}
	i := 0
	each(args, func(_, value []byte) bool {
		name := fmt.Sprint(i + 1)
		if i < len(takes) {
			name = "'" + takes[i].name + "'"
		}
		i++
		return refuse(name, value)
	})
	if err != nil {
		return err
	}
	each(kwargs, func(name, value []byte) bool {
		key := unquote(name)
		return refuse("'"+clip(key)+"'", value)
	})
	return err
}
